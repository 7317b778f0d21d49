package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// Image is the image of containers: busybox, with a shell and the usual small tools.
const Image = "busybox"

// PauseImage is an image like Image whose containers sleep, for the sandboxes of pods.
const PauseImage = "pause"

// loadImage loads the image into a fresh engine, without a registry.
func loadImage(h *Host) error {
	archive, err := imageArchive(Image, nil)
	if err != nil {
		return err
	}
	_, err = run("docker", []string{"load", "-q"},
		func(c *exec.Cmd) { h.client(c); c.Stdin = bytes.NewReader(archive) }, startHere)
	return err
}

// imageArchive returns an image as docker save would. docker import needs less, but cannot set the stop signal with
// engine 20.10: a shell that is process 1 ignores SIGTERM, so each docker stop would take ten seconds. The image's
// labels become those of its containers. Building it is faster than caching and validating it.
func imageArchive(image string, labels map[string]string) ([]byte, error) {
	layer, err := imageLayer()
	if err != nil {
		return nil, err
	}
	command := []string{"sh"}
	if image == PauseImage {
		command = []string{"sleep", "1d"}
	}
	config := asJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Cmd": command, "StopSignal": "SIGKILL", "Env": []string{"PATH=/bin"}, "Labels": labels,
		},
		"rootfs": map[string]any{
			"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))},
		},
	})
	name := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest := asJSON([]map[string]any{
		{"Config": name, "RepoTags": []string{image + ":latest"}, "Layers": []string{"layer.tar"}},
	})
	var a archive
	a.add(tar.Header{Name: "layer.tar", Mode: 0o644}, layer)
	a.add(tar.Header{Name: name, Mode: 0o644}, config)
	a.add(tar.Header{Name: "manifest.json", Mode: 0o644}, manifest)
	return a.bytes()
}

// imageLayer returns a layer with busybox and links named after its tools.
func imageLayer() ([]byte, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	tools, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the tools of busybox: %w", err)
	}
	var a archive
	for _, dir := range []string{"bin/", "etc/", "root/", "tmp/", "var/", "www/"} {
		a.add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o777}, nil)
	}
	a.add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	a.add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	a.add(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for tool := range strings.FieldsSeq(string(tools)) {
		if tool != "busybox" {
			a.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + tool, Linkname: "busybox"}, nil)
		}
	}
	return a.bytes()
}

// An archive builds a tar file, and collects errors until the end.
type archive struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error
}

func (a *archive) add(h tar.Header, content []byte) {
	if a.w == nil {
		a.w = tar.NewWriter(&a.buf)
	}
	h.Size = int64(len(content))
	a.err = errors.Join(a.err, a.w.WriteHeader(&h))
	_, err := a.w.Write(content)
	a.err = errors.Join(a.err, err)
}

func (a *archive) bytes() ([]byte, error) {
	err := errors.Join(a.err, a.w.Close())
	return a.buf.Bytes(), err
}

// asJSON encodes a value of strings, lists and maps, which cannot fail.
func asJSON(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}
