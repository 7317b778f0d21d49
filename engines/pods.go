package engines

import (
	"errors"

	"github.com/containerd/containerd/v2/core/containers"
)

// criNamespace is the namespace in which containerd's CRI has its containers, and labelKind the label by which it tells
// a pod's sandbox from the containers in it (containerd, internal/cri).
const (
	criNamespace  = "k8s.io"
	labelKind     = "io.cri-containerd.kind"
	kindSandbox   = "sandbox"
	kindContainer = "container"
)

// The labels with which a kubelet names the pod of a sandbox (k8s.io/kubelet/pkg/types).
const (
	labelPod          = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
)

// attachmentOf returns the name of a container's attachments. nerdctl and ctr form it from namespace and ID, CRI names
// a pod by the ID of its sandbox. The containers of a pod have none, since they are in its sandbox.
func attachmentOf(namespace string, o containers.Container) string {
	switch kind := o.Labels[labelKind]; {
	case namespace == criNamespace && kind == kindSandbox:
		return o.ID
	case namespace == criNamespace && kind == kindContainer:
		return ""
	}
	return namespace + "-" + o.ID
}

// eachName calls do with each name that the attachments of a container may have, when the container can no longer be
// asked for its labels.
func eachName(namespace, id string, do func(name string) error) error {
	err := do(namespace + "-" + id)
	if namespace == criNamespace {
		err = errors.Join(err, do(id))
	}
	return err
}
