package engines

import (
	"context"
	"maps"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
)

// Labels of a container with the prefix labelOption set options of its endpoint, except the other two (cni/door).
const labelOption, labelMAC, labelAlias = "netyard.", "netyard.mac", "netyard.alias"

// userLabels returns the labels of a container without netyard's labels that come from its image: an image may come
// from anybody, and only the user who runs a container may decide what it may send. If the image cannot be read, it
// removes all of netyard's labels, since it cannot tell where they come from.
func (c *Containerd) userLabels(
	ctx context.Context, client *containerd.Client, o containers.Container,
) map[string]string {
	if o.Image == "" || !slices.ContainsFunc(slices.Collect(maps.Keys(o.Labels)), ours) {
		return o.Labels
	}
	labels := maps.Clone(o.Labels)
	image, err := client.GetImage(ctx, o.Image)
	if err == nil {
		spec, sErr := image.Spec(ctx)
		err = sErr
		maps.DeleteFunc(labels, func(label, v string) bool {
			inImage, ok := spec.Config.Labels[label]
			return ours(label) && ok && inImage == v
		})
	}
	if err != nil {
		maps.DeleteFunc(labels, func(label, _ string) bool { return ours(label) })
		c.Log.Warn("container labels ignored: they may come from its image",
			"container_id", o.ID, "labels", labelOption+"*", "image", o.Image, "err", err)
	}
	return labels
}

// ours reports whether a label is one of netyard's.
func ours(label string) bool { return strings.HasPrefix(label, labelOption) }

// labelOptions returns the endpoint options in the labels of a container.
func labelOptions(labels map[string]string) map[string]string {
	out := map[string]string{}
	for label, v := range labels {
		if option, ok := strings.CutPrefix(label, labelOption); ok && label != labelMAC && label != labelAlias {
			out[option] = v
		}
	}
	return out
}
