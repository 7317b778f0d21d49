package engines

import (
	"cmp"
	"context"
	"maps"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"netyard/modes"
	"netyard/yard/book"
)

// splitLabels divides a container's labels into its own and those that it has from its image: who runs it has not set
// them, or has set them to the same value. own is never nil.
func splitLabels(all, image map[string]string) (own, fromImage map[string]string) {
	own, fromImage = map[string]string{}, map[string]string{}
	for label, v := range all {
		if inImage, ok := image[label]; ok && inImage == v {
			fromImage[label] = v
		} else {
			own[label] = v
		}
	}
	return own, fromImage
}

// An owners makes the owners of endpoints from containers. It asks for the labels of each image once.
type owners struct {
	c      *Containerd
	client *containerd.Client
	images map[string]map[string]string // by namespace and name
}

// of returns a container as an owner, and its own labels, with netyard's. An image may come from anybody, and only who
// runs a container may decide what it may do. If the image cannot be read, the owner's labels are unknown, and the
// others are without netyard's, since nobody can tell where they come from.
func (w owners) of(ctx context.Context, ns string, o containers.Container) (modes.Container, map[string]string) {
	image, err := w.labelsOf(ctx, ns, o)
	if err == nil {
		return ownerOf(o, image)
	}
	w.c.Log.Debug("labels of an image not read",
		"container_id", o.ID, "image", o.Image, "err", err)
	owner, labels := ownerOf(o, nil)
	maps.DeleteFunc(labels, func(label, _ string) bool { return modes.IsLabel(label) })
	owner.Labels = nil
	return owner, labels
}

// labelsOf returns the labels of a container's image, or nothing if the container has no labels.
func (w owners) labelsOf(ctx context.Context, ns string, o containers.Container) (map[string]string, error) {
	key := ns + " " + o.Image
	labels, known := w.images[key]
	if known || o.Image == "" || len(o.Labels) == 0 {
		return labels, nil
	}
	ctx = namespaces.WithNamespace(ctx, ns)
	image, err := w.client.GetImage(ctx, o.Image)
	if err != nil {
		return nil, err
	}
	spec, err := image.Spec(ctx)
	if err != nil {
		return nil, err
	}
	w.images[key] = spec.Config.Labels
	return spec.Config.Labels, nil
}

// ownerOf returns a container of containerd as the owner of endpoints, and the labels that it does not have from its
// image. The owner has those for policies; netyard's are not among them.
func ownerOf(o containers.Container, image map[string]string) (modes.Container, map[string]string) {
	own, fromImage := splitLabels(o.Labels, image)
	c := modes.Container{
		Engine: book.Containerd, ID: o.ID, Name: cmp.Or(own[labelName], o.ID), // ctr's IDs are names
		Image: o.Image, Labels: maps.Clone(own), ImageLabels: fromImage,
	}
	if o.Labels[labelKind] == kindSandbox { // it never starts again, so no addresses are held for it
		c.Engine, c.Name, c.Namespace = book.CNI, own[labelPod], own[labelPodNamespace]
	}
	for _, labels := range []map[string]string{c.Labels, c.ImageLabels} {
		maps.DeleteFunc(labels, func(label, _ string) bool { return modes.IsLabel(label) })
	}
	return c, own
}

// labelOptions returns the endpoint options in the labels of a container.
func labelOptions(labels map[string]string) map[string]string {
	out := map[string]string{}
	for label, v := range labels {
		if option, ok := modes.LabelOption(label); ok {
			out[option] = v
		}
	}
	return out
}
