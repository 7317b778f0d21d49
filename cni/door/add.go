package door

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"netyard/cni"
	"netyard/modes"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/overlay"
	"netyard/yard/own"
)

// labelNetworks is the label that lists the networks of a nerdctl container (nerdctl, pkg/labels).
const labelNetworks = "nerdctl/networks"

// add attaches a container. ns is an open descriptor of its sandbox.
func (s *Server) add(ctx context.Context, q cni.Request, ns int) (answer, error) {
	if err := s.checkSandbox(q, ns); err != nil {
		return answer{}, err
	}
	if !modes.ValidInnerName(q.IfName) {
		return answer{}, fmt.Errorf("%w: CNI_IFNAME=%s: not a valid interface name",
			errEnvironment, cni.Shorten(q.IfName))
	}
	c, err := decodeConfig(q.Config)
	if err != nil {
		return answer{}, err
	}
	env := environment(q.Args)
	n, p, err := s.network(ctx, c, env)
	if err != nil {
		return answer{}, err
	}
	r := book.AttachRequest{
		Network:    n,
		Attachment: q.ContainerID,
		Container:  attach.OwnerOf(q.ContainerID, env),
		Config:     c.Name,
		IfName:     q.IfName,
		Sandbox:    q.Netns,
		NS:         ns,
		Pools:      p.pools,
		OwnRoutes:  p.ownRoutes,
		Routes:     p.containerRoutes,
	}
	labels := s.container(ctx, &r)
	if err := s.fill(&r, q, order{config: c, plan: p, labels: labels}); err != nil {
		return answer{}, err
	}
	a, err := attach.Attach(ctx, s.Yard, r)
	if err != nil {
		return answer{}, err
	}
	raw, err := result(c, p, a)
	return answer{raw, a.Endpoint.ID}, err
}

// network returns the network of a configuration and the plan for its containers. It makes the network if the
// configuration does not name one. env are the runtime's CNI_ARGS.
func (s *Server) network(
	ctx context.Context, c config, env map[string]string,
) (n modes.Network, p plan, err error) {
	named, err := c.isNamed()
	if err != nil {
		return n, p, err
	}
	if named {
		if n, err = own.NetworkNamed(s.Yard, c.Network); err != nil {
			return n, p, fmt.Errorf("%w; netyard network ls lists the networks", err)
		}
		p, err = c.planOn(n)
		return n, p, err
	}
	if p, err = c.plan(s.Yard.Options, env); err != nil {
		return n, p, err
	}
	n, err = own.CreateNetwork(ctx, s.Yard, p.network)
	if errors.Is(err, book.ErrExists) {
		err = fmt.Errorf(`%w; it was not made from this configuration: to attach to it, `+
			`set "network": %q and remove the other keys`, err, c.Name)
	}
	if _, ok := overlay.Overlay(s.Yard.Book, n); ok && err == nil { // the cluster defines it, not the configuration
		p, err = c.planOn(n)
	}
	return n, p, err
}

// container sets the request's container and returns the container's labels. Without an answer from the engine in time
// it leaves both as they are: what the runtime did not tell of the container is found later, its labels are not.
func (s *Server) container(ctx context.Context, r *book.AttachRequest) map[string]string {
	if s.FindContainer == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, labels, err := s.FindContainer(ctx, r.Attachment)
	if err != nil {
		if ctx.Err() != nil {
			s.Log.Warn("container labels ignored: containerd did not answer", "container_id", r.Attachment)
		}
		return nil
	}
	r.Container = found
	return labels
}

// An order is what a container is to get, as far as it does not come from the runtime's parameters.
type order struct {
	config config
	plan   plan
	labels map[string]string
}

// fill sets what is wanted for this container: MAC, aliases, options, addresses and ports. Where several sources give a
// MAC, the last one in the list counts, as in the upstream plugins.
func (s *Server) fill(r *book.AttachRequest, q cni.Request, o order) (err error) {
	n, c, labels := r.Network, o.config, o.labels
	env, args := environment(q.Args), c.args()
	for _, mac := range []string{labels[modes.LabelMAC], env["MAC"], args.CNI.MAC, c.Runtime.MAC} {
		if mac == "" {
			continue
		}
		parsed, err := net.ParseMAC(mac)
		if err != nil || len(parsed) != 6 || parsed[0]&1 != 0 {
			return fmt.Errorf("%w: MAC %q: want a unicast address of 6 bytes", errEnvironment, mac)
		}
		r.MAC = parsed.String()
	}
	r.Aliases = c.aliases()
	given := map[string]string{}
	if c.HairpinMode {
		given["hairpin"] = "true"
	}
	for label, v := range labels {
		if option, ok := modes.LabelOption(label); ok {
			given[option] = v
		} else if label == modes.LabelAlias {
			r.Aliases = append(r.Aliases, strings.Split(v, ",")...)
		}
	}
	for option, bits := range c.Runtime.rates() {
		given[option] = bits
	}
	if r.Options, err = s.Yard.Options.ResolveEndpoint(n.Mode, given); err != nil {
		return err
	}
	if r.Addrs, err = requestedAddrs(c, env, o, n); err != nil {
		return err
	}
	if r.Ports, err = asksOf(c.Runtime.PortMappings); err != nil {
		return err
	}
	if len(r.Ports) > 0 {
		r.Reserver = sync.OnceValue(func() int { return cmp.Or(nerdctlReserver(q.ContainerID), conmon(q.ContainerID)) })
	}
	return nil
}

// asksOf returns the ports to publish. A mapping without a host port publishes nothing.
func asksOf(mappings []portMapping) (out []book.PortRequest, err error) {
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue
		}
		a := book.PortRequest{Proto: strings.ToLower(m.Protocol)}
		if a.Proto == "" {
			a.Proto = "tcp"
		}
		if m.HostPort < 0 || m.HostPort > math.MaxUint16 || m.ContainerPort < 1 || m.ContainerPort > math.MaxUint16 ||
			!slices.Contains([]string{"tcp", "udp", "sctp"}, a.Proto) {
			return nil, refuse("runtimeConfig.portMappings", fmt.Sprintf("%s is not a port of tcp, udp or sctp", m))
		}
		a.HostPort, a.ContainerPort = uint16(m.HostPort), uint16(m.ContainerPort) //nolint:gosec // checked above
		a.HostPortEnd = a.HostPort
		if m.HostIP != "" {
			if a.HostIP, err = netip.ParseAddr(m.HostIP); err != nil {
				return nil, refuse("runtimeConfig.portMappings", fmt.Sprintf("%s: %q is not an address", m, m.HostIP))
			}
			a.HostIP = a.HostIP.Unmap()
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// nerdctlReserver returns the process ID of nerdctl's port reserver of a container, which listens on its host ports to
// reserve them (nerdctl, pkg/portutil), or 0 if there is none.
func nerdctlReserver(attachment string) int {
	at := strings.LastIndexByte(attachment, '-')
	if at < 0 {
		return 0
	}
	raw, err := os.ReadFile(filepath.Join("/run/nerdctl", attachment[:at], attachment[at+1:], "port-reserver.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw))) // 0 if it is not a number
	return pid
}

// conmon returns the process ID of the monitor of a container of podman or CRI-O, or 0 if there is none. It listens on
// the published ports to reserve them (podman, libpod/oci_conmon_common.go), so it has them already when podman
// attaches the container again (podman network reload).
func conmon(attachment string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		if err != nil || filepath.Base(args[0]) != "conmon" {
			continue
		}
		for i, arg := range args[:len(args)-1] {
			if arg == "-c" && args[i+1] == attachment {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
				return pid
			}
		}
	}
	return 0
}

// requestedAddrs returns the addresses that the user requested on the network, in the order in which they count in the
// upstream plugins: first those of the runtime, then of args, then of CNI_ARGS. A runtime passes all requested
// addresses of a container to each of its networks, so an address outside the network's subnets is ignored, and is an
// error only if the container is known to be on no other network. With ipam type static, those with a prefix length are
// in the plan already.
func requestedAddrs(c config, env map[string]string, o order, n modes.Network) (in []netip.Addr, err error) {
	for _, source := range []struct {
		key   string
		texts []string
	}{
		{"runtimeConfig.ips", c.Runtime.IPs},
		{"args.cni.ips", c.args().CNI.IPs},
		{argIP, strings.Split(env[argIP], ",")},
	} {
		texts := source.texts
		if o.plan.isStatic {
			texts = slices.DeleteFunc(slices.Clone(texts), func(t string) bool { return strings.Contains(t, "/") })
		}
		as, err := addresses(source.key, texts)
		if err != nil {
			return nil, err
		}
		for _, a := range as {
			if slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) }) {
				in = append(in, a)
			} else if onlyNetwork(o.labels) {
				return nil, fmt.Errorf("%w: address %s is in no subnet of network %s", errEnvironment, a, n.Name)
			}
		}
	}
	if o.plan.isStatic { // several may be of one subnet
		return append(in, o.plan.fixed...), nil
	}
	return onePerSubnet(in, n), nil
}

// onlyNetwork reports whether a container's labels say that it is on one network only.
func onlyNetwork(labels map[string]string) bool {
	var names []string
	return json.Unmarshal([]byte(labels[labelNetworks]), &names) == nil && len(names) == 1
}

// onePerSubnet returns the first address of each subnet.
func onePerSubnet(as []netip.Addr, n modes.Network) (out []netip.Addr) {
	seen := map[netip.Prefix]bool{}
	for _, a := range as {
		for _, s := range n.Subnets {
			if s.Pool.Contains(a) && !seen[s.Pool] {
				seen[s.Pool], out = true, append(out, a)
			}
		}
	}
	return out
}
