package attach

import (
	"strings"

	"netyard/modes"
	"netyard/yard/book"
)

// OwnerOf returns the container of an attachment as far as the runtime itself tells: by the ID of the container, and by
// the arguments that it passes to plugins (CNI_ARGS), which name pods, podman's containers, and jobs.
func OwnerOf(attachment string, args map[string]string) modes.Container {
	c := modes.Container{Engine: book.CNI, ID: attachment}
	for _, keys := range []struct{ namespace, name, group string }{
		{"K8S_POD_NAMESPACE", "K8S_POD_NAME", ""}, // containerd's CRI, CRI-O; podman gives only the name
		{"NOMAD_NAMESPACE", "NOMAD_JOB_ID", "NOMAD_GROUP_NAME"},
	} {
		name, group, namespace := args[keys.name], args[keys.group], args[keys.namespace]
		if !validName(name) {
			continue
		}
		if validName(group) {
			name += "." + group
		}
		c.Name = name
		if validName(namespace) && namespace != name { // podman 3 gives the name for both
			c.Namespace = namespace
		}
		break
	}
	return c
}

// validName reports whether a name that a runtime gives can be shown and asked for as it is.
func validName(name string) bool {
	const most, letters = 253, "abcdefghijklmnopqrstuvwxyz0123456789_.-" // a pod's name has at most 253
	return name != "" && len(name) <= most && strings.Trim(strings.ToLower(name), letters) == ""
}
