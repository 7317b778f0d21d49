package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// A kubelet asks containerd's CRI for pods, as Kubernetes' kubelet does.
type kubelet struct {
	t       *testing.T
	h       *lab.Host
	runtime cri.RuntimeServiceClient
}

func newKubelet(t *testing.T, h *lab.Host) kubelet {
	t.Helper()
	c, err := grpc.NewClient("unix:"+h.StartCRI(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	k := kubelet{t, h, cri.NewRuntimeServiceClient(c)}
	eventually(t, "CRI has found the network", func() bool {
		s, err := k.runtime.Status(t.Context(), &cri.StatusRequest{})
		return err == nil && !slices.ContainsFunc(s.GetStatus().GetConditions(), func(c *cri.RuntimeCondition) bool {
			return !c.GetStatus()
		})
	})
	return k
}

// run starts a pod of the namespace shop; ports are pairs of ports, HOST:CONTAINER. It returns the ID of its sandbox.
func (k kubelet) run(ctx context.Context, name string, ports ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: "uid-" + name},
		Hostname: name,
		Labels: map[string]string{
			"app": "web", "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "shop",
		},
		LogDirectory: filepath.Join(k.h.Dir, "log"),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: k.h.CgroupParent()},
	}
	for _, p := range ports {
		host, inner, _ := strings.Cut(p, ":")
		m := &cri.PortMapping{Protocol: cri.Protocol_TCP}
		for text, to := range map[string]*int32{host: &m.HostPort, inner: &m.ContainerPort} {
			n, err := strconv.Atoi(text)
			if err != nil {
				return "", err
			}
			*to = int32(n) //nolint:gosec // a port
		}
		config.PortMappings = append(config.PortMappings, m)
	}
	r, err := k.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	return r.GetPodSandboxId(), err
}

// remove stops and removes pods, all at once.
func (k kubelet) remove(ids ...string) error {
	var all errgroup.Group
	for _, id := range ids {
		all.Go(func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(k.t.Context()), 2*time.Minute)
			defer cancel()
			_, err := k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			if err == nil {
				_, err = k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			}
			return err
		})
	}
	return all.Wait()
}

// addresses returns the addresses of a pod.
func (k kubelet) addresses(id string) (all []string) {
	k.t.Helper()
	s, err := k.runtime.PodSandboxStatus(k.t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		k.t.Fatal(err)
	}
	n := s.GetStatus().GetNetwork()
	all = append(all, n.GetIp())
	for _, ip := range n.GetAdditionalIps() {
		all = append(all, ip.GetIp())
	}
	return all
}

// TestCRI: pods of containerd's CRI, with no other plugin than netyard's on the host: two families, host ports, names
// and labels, many pods at once, and pods that are stopped while the daemon is down. NETYARD_PODS is how many are
// started at once.
func TestCRI(t *testing.T) {
	t.Parallel()
	h := host6(t, lab.Engine2010, lab.NoEngine())
	h.Sh("netyard network create pods --subnet 10.77.0.0/16 --subnet fd77::/64; netyard cni install pods")
	k := newKubelet(t, h)
	first, err := k.run(t.Context(), "web-1", "8080:80", "8443:443")
	if err != nil {
		t.Fatal(err)
	}
	named(t, h, "web-1")
	pod := ps(t, h)[0]
	if a := k.addresses(first); len(a) != 2 || a[0]+"/16" != pod.Addresses[0] || a[1]+"/64" != pod.Addresses[1] {
		t.Errorf("CRI shows the addresses %v, netyard %v", a, pod.Addresses)
	}
	if pod.ContainerID != first || pod.Namespace != "shop" || pod.Attachment != first {
		t.Errorf("the pod is shown as %+v", pod)
	}
	h.Named(filepath.Base(pod.Sandbox)).Listen("tcp", ":80")
	has(t, h.Outside.Dial("tcp", h.IP+":8080"), h.Outside.IP)
	for _, ref := range []string{"web-1", "shop/web-1", first, first[:12]} {
		has(t, h.Sh("netyard endpoint inspect", ref, "--format '{{.ID}}'"), pod.ID)
	}
	has(t, h.Sh("netyard trace", h.Outside.IP, "8080"), "web-1")
	h.Sh(`printf 'name: shop\nselect: {labels: {app: web}}\ningress: {}\n' >/run/policy.yaml`)
	h.Sh("netyard policy apply /run/policy.yaml")
	eventually(t, "the policy selects the pod by its label", func() bool {
		return strings.Contains(h.Sh("netyard policy show shop"), "web-1")
	})
	h.Outside.DialFail("tcp", h.IP+":8080")
	h.Sh("netyard policy rm shop; rm /run/policy.yaml")

	many := 16
	if n, err := strconv.Atoi(os.Getenv("NETYARD_PODS")); err == nil {
		many = n
	}
	ids := make([]string, many)
	var all errgroup.Group
	for i := range ids {
		all.Go(func() (err error) {
			ids[i], err = k.run(t.Context(), fmt.Sprintf("many-%d", i),
				fmt.Sprintf("%d:80", 10000+i), fmt.Sprintf("%d:443", 20000+i))
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := len(ps(t, h)); n != many+1 {
		t.Errorf("%d endpoints of %d pods", n, many+1)
	}
	healthy(t, h)

	h.Netyard.Kill()
	if err := k.remove(first, ids[0]); err != nil {
		t.Errorf("stop pods without the daemon: %v", err)
	}
	h.Netyard.Start()
	eventually(t, "the stopped pods are gone", func() bool {
		return !slices.ContainsFunc(ps(t, h), func(e api.Endpoint) bool {
			return e.Attachment == first || e.Attachment == ids[0]
		})
	})
	if err := k.remove(ids[1:]...); err != nil {
		t.Error(err)
	}
	nothing(t, h, "the pods")
	healthy(t, h)
}
