package door

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"netyard/cni"
	"netyard/modes"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/overlay"
	"netyard/yard/own"
)

// The labels of a container that say what CNI cannot carry.
const (
	labelMAC   = "netyard.mac"
	labelAlias = "netyard.alias"
	// labelOption begins those that are options for the container's endpoint: netyard.rate=…
	labelOption = "netyard."
	// labelNetworks are the networks of a container of nerdctl's (nerdctl, pkg/labels).
	labelNetworks = "nerdctl/networks"
)

// add attaches a container.
func (s *Server) add(ctx context.Context, q cni.Request, netns *os.File) (answer, error) {
	if netns == nil {
		return answer{}, fmt.Errorf("%w: CNI_NETNS is empty", errSandbox)
	}
	if !modes.ValidIfName(q.IfName) {
		return answer{}, fmt.Errorf("%w: CNI_IFNAME=%s is no interface name", errEnvironment, q.IfName)
	}
	c, err := decodeConfig(q.Config)
	if err != nil {
		return answer{}, err
	}
	n, p, err := s.network(ctx, c)
	if err != nil {
		return answer{}, err
	}
	r := book.AttachRequest{
		NetworkID: n.ID, Attachment: q.ContainerID, Config: c.Name, IfName: q.IfName, Sandbox: q.Netns, NS: int(netns.Fd()), Pools: p.pools,
		Container: modes.Container{Engine: book.CNI}, OwnRoutes: p.ownRoutes, Routes: p.inside,
	}
	labels := s.whose(ctx, &r)
	if err := s.fill(&r, c, q, n, p, labels); err != nil {
		return answer{}, err
	}
	a, err := attach.Attach(ctx, s.Yard, r)
	if err != nil {
		return answer{}, err
	}
	raw, err := result(c, p, a)
	return answer{raw, a.Endpoint.ID}, err
}

// network finds the network of a configuration, or makes it.
func (s *Server) network(ctx context.Context, c config) (n modes.Network, p plan, err error) {
	named, err := c.isNamed()
	if err != nil {
		return n, p, err
	}
	if named {
		if n, err = own.NetworkNamed(s.Yard, c.Network); err != nil {
			return n, p, fmt.Errorf("%w; netyard network ls shows what there is", err)
		}
		p, err = c.planOn(n)
		return n, p, err
	}
	if p, err = c.plan(s.Yard.Options); err != nil {
		return n, p, err
	}
	n, err = own.MakeNetwork(ctx, s.Yard, p.network)
	if errors.Is(err, book.ErrExists) {
		err = fmt.Errorf(`%w, and is not of this configuration; to attach to it, say "network": %q and leave the rest out`, err, c.Name)
	}
	if _, ok := overlay.Overlay(s.Yard.Book, n); ok && err == nil { // what it is the cluster says, and not this configuration alone
		p, err = c.planOn(n)
	}
	return n, p, err
}

// whose asks for the container, and goes on without an answer: its name is found out later, its labels are not.
func (s *Server) whose(ctx context.Context, r *book.AttachRequest) map[string]string {
	if s.Whose == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	found, labels, err := s.Whose(ctx, r.Attachment)
	if err != nil {
		if ctx.Err() != nil {
			s.Log.Warn("attach a container without its labels: containerd did not answer", "container", r.Attachment)
		}
		return nil
	}
	r.Container = found
	return labels
}

// fill reads what is wanted for this one container, from the least to the most particular.
func (s *Server) fill(r *book.AttachRequest, c config, q cni.Request, n modes.Network, p plan, labels map[string]string) (err error) {
	env, args := environment(q.Args), c.args()
	for _, mac := range []string{labels[labelMAC], args.CNI.MAC, c.Runtime.MAC, env["MAC"]} {
		if mac == "" {
			continue
		}
		parsed, err := net.ParseMAC(mac)
		if err != nil || len(parsed) != 6 || parsed[0]&1 != 0 {
			return fmt.Errorf("%w: mac address %q: want six bytes, of one host", errEnvironment, mac)
		}
		r.MAC = parsed.String()
	}
	r.Aliases = c.Runtime.Aliases
	given := map[string]string{}
	for label, v := range labels {
		switch option, ours := strings.CutPrefix(label, labelOption); {
		case !ours, label == labelMAC:
		case label == labelAlias:
			r.Aliases = append(r.Aliases, strings.Split(v, ",")...)
		default:
			given[option] = v
		}
	}
	for option, bits := range c.Runtime.rates() {
		given[option] = bits
	}
	if r.Options, err = s.Yard.Options.ResolveEndpoint(n.Mode, given); err != nil {
		return err
	}
	if r.Addrs, err = wanted(c, env, args, n, labels); err != nil {
		return err
	}
	r.Addrs = onePerSubnet(append(r.Addrs, p.fixed...), n)
	if r.Ports, err = asks(c.Runtime.PortMappings); err != nil {
		return err
	}
	if len(r.Ports) > 0 {
		r.Reserver = reserver(q.ContainerID)
	}
	return nil
}

// asks are the ports to publish. One without a port of the host is only said to be there.
func asks(mappings []portMapping) (out []book.Ask, err error) {
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue
		}
		a := book.Ask{Proto: strings.ToLower(m.Protocol), HostPort: uint16(m.HostPort), HostPortEnd: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)} //nolint:gosec // checked below
		if a.Proto == "" {
			a.Proto = "tcp"
		}
		if m.HostPort != int(a.HostPort) || m.ContainerPort != int(a.ContainerPort) || m.ContainerPort == 0 || !slices.Contains([]string{"tcp", "udp", "sctp"}, a.Proto) {
			return nil, refuse("runtimeConfig.portMappings", fmt.Sprintf("%s is no port of tcp, udp or sctp", m))
		}
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

// reserver is the process with which nerdctl keeps the ports of a container from others (nerdctl, pkg/portutil); 0:
// there is none.
func reserver(attachment string) int {
	at := strings.LastIndexByte(attachment, '-')
	if at < 0 {
		return 0
	}
	raw, err := os.ReadFile(filepath.Join("/run/nerdctl", attachment[:at], attachment[at+1:], "port-reserver.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw))) // 0 when it is none
	return pid
}

// wanted are the addresses that were asked for by name. A runtime passes those of a container to each of its networks:
// what is of another network is left alone, unless there is no other.
func wanted(c config, env map[string]string, args confArgs, n modes.Network, labels map[string]string) (in []netip.Addr, err error) {
	for _, said := range []struct {
		key   string
		texts []string
	}{{"IP", strings.Split(env["IP"], ",")}, {"runtimeConfig.ips", c.Runtime.IPs}, {"args.cni.ips", args.CNI.IPs}} {
		as, err := addresses(said.key, said.texts)
		if err != nil {
			return nil, err
		}
		for _, a := range as {
			if slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) }) {
				in = append(in, a)
			} else if onlyNetwork(labels) {
				return nil, fmt.Errorf("%w: address %s is in no subnet of network %s", errEnvironment, a, n.Name)
			}
		}
	}
	return in, nil
}

// onlyNetwork says whether a container is known to be on one network only.
func onlyNetwork(labels map[string]string) bool {
	var names []string
	return json.Unmarshal([]byte(labels[labelNetworks]), &names) == nil && len(names) == 1
}

// onePerSubnet keeps the first address of each subnet.
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
