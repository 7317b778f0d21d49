package engines

import (
	"testing"

	"github.com/containerd/containerd/v2/core/containers"

	"netyard/modes"
	"netyard/yard/book"
)

// TestPods shows that a pod is known by its name, and by the ID of its sandbox to CRI; that the containers in it have
// no attachment of their own; and that a container of another runtime cannot pass for a pod.
func TestPods(t *testing.T) {
	t.Parallel()
	pod := labels{labelKind: kindSandbox, labelPod: "web-1", labelPodNamespace: "shop", "app": "web"}
	for _, c := range []struct {
		namespace  string
		labels     labels
		attachment string
		name, full string
		engine     string
	}{
		{criNamespace, pod, "abc", "web-1", "shop/web-1", book.CNI},
		{criNamespace, labels{labelKind: kindContainer, labelPod: "web-1"}, "", "abc", "", book.Containerd},
		{criNamespace, labels{labelName: "tool"}, "k8s.io-abc", "tool", "", book.Containerd},
		{"default", labels{labelName: "c1"}, "default-abc", "c1", "", book.Containerd},
		{"default", labels{labelKind: kindContainer, labelName: "c1"}, "default-abc", "c1", "", book.Containerd},
	} {
		o := containers.Container{ID: "abc", Labels: c.labels}
		got, _ := ownerOf(o, nil)
		if a := attachmentOf(c.namespace, o); a != c.attachment || got.Name != c.name || got.FullName() != c.full ||
			got.Engine != c.engine || got.ID != "abc" {
			t.Errorf("%s %v: attachment %q of %+v", c.namespace, c.labels, a, got)
		}
	}
	// An image does not name a pod.
	if got, _ := ownerOf(containers.Container{ID: "abc", Labels: pod}, pod); got.Name != "" || got.Namespace != "" {
		t.Errorf("named by its image: %+v", got)
	}
}

// TestCachedOwner shows that a container of podman or CRI-O has its name after its record was lost.
func TestCachedOwner(t *testing.T) {
	t.Parallel()
	c := cached{ContainerID: "abc", CNIArgs: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-1"},
	}}
	want := modes.Container{Engine: book.CNI, ID: "abc", Name: "web-1", Namespace: "shop"}
	if got := c.owner(); !got.Equal(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
