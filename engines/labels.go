package engines

import (
	"context"
	"maps"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
)

// Labels of a container that begin so are options for its endpoint, but for two that are more than that (cni/door).
const labelOption, labelMAC, labelAlias = "netyard.", "netyard.mac", "netyard.alias"

// chosen are the labels of a container without those for netyard that its image has, too: an image may come from
// anybody, and what a container may send is for who runs it to say. When the image cannot be read, none of them is
// known to be his.
func (c *Containerd) chosen(ctx context.Context, client *containerd.Client, o containers.Container) map[string]string {
	if o.Image == "" || !slices.ContainsFunc(slices.Collect(maps.Keys(o.Labels)), ours) {
		return o.Labels
	}
	his := maps.Clone(o.Labels)
	image, err := client.GetImage(ctx, o.Image)
	if err == nil {
		spec, sErr := image.Spec(ctx)
		err = sErr
		maps.DeleteFunc(his, func(label, v string) bool {
			of, there := spec.Config.Labels[label]
			return ours(label) && there && of == v
		})
	}
	if err != nil {
		maps.DeleteFunc(his, func(label, _ string) bool { return ours(label) })
		c.Log.Warn("labels of a container are not heeded: they may be its image's", "container", o.ID, "labels", labelOption+"*", "image", o.Image, "err", err)
	}
	return his
}

func ours(label string) bool { return strings.HasPrefix(label, labelOption) }

// said are the options that the labels of a container are for its endpoint.
func said(labels map[string]string) map[string]string {
	out := map[string]string{}
	for label, v := range labels {
		if option, is := strings.CutPrefix(label, labelOption); is && label != labelMAC && label != labelAlias {
			out[option] = v
		}
	}
	return out
}
