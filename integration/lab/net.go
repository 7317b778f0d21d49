package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// reachTime is how long Ping and Dial retry: IPv6 addresses need more than a second to become usable.
	reachTime = 8 * time.Second
	// silenceTime is how long PingFail and DialFail wait for an answer.
	silenceTime = time.Second
)

// A Net is the network namespace of a node or a container. The test itself can listen and dial in it.
type Net struct {
	report *reporter
	name   string
	space  func() (space, error)
	node   *Node // the node that it is on
}

// Tool runs a shell command with this machine's own programs in the network namespace, since a container or an engine's
// root may lack them: h.In("c1").Tool("tcpdump …"), h.Tool("conntrack -L").
func (n *Net) Tool(cmd ...string) string {
	t := n.report.TB()
	t.Helper()
	line := strings.Join(cmd, " ")
	out, err := run("/bin/sh", []string{"-c", line}, func(*exec.Cmd) {}, n.start)
	if err != nil {
		t.Fatalf("%s# %s\n%v", n.name, line, err)
	}
	return out
}

func (n *Net) start(cmd *exec.Cmd) error {
	s, err := n.space()
	if err != nil {
		return err
	}
	return s.start(cmd)
}

func (n *Net) do(f func() error) error {
	s, err := n.space()
	if err != nil {
		return err
	}
	return s.do(f)
}

// Do calls f on a thread in the network namespace, so that sockets that f opens are there.
func (n *Net) Do(f func() error) error { return n.do(f) }

// A Server answers each client with the source address that it sees.
type Server struct {
	// Addr is what it listens on.
	Addr  string
	close func() error
	mu    sync.Mutex
	seen  []string
}

// Listen starts a Server for TCP connections or UDP datagrams on addr: Listen("tcp", ":80"). It ends with the test, or
// when its node is powered off; until then it keeps the network namespace alive, even without the container.
func (n *Net) Listen(network, addr string) *Server {
	t := n.report.TB()
	t.Helper()
	s := &Server{}
	var err error
	if strings.HasPrefix(network, "udp") {
		err = n.listenUDP(s, network, addr)
	} else {
		err = n.listenTCP(s, network, addr)
	}
	if err != nil {
		t.Fatalf("listen on %s %s in %s: %v", network, addr, n.name, err)
	}
	t.Cleanup(func() { s.Close() })
	n.node.mu.Lock()
	defer n.node.mu.Unlock()
	n.node.servers = append(n.node.servers, s)
	return s
}

func (n *Net) listenTCP(s *Server, network, addr string) error {
	var l net.Listener
	err := n.do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		l, err = c.Listen(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return err
	}
	s.Addr, s.close = l.Addr().String(), l.Close
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return nil
}

func (s *Server) serve(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(commandTime))
	s.note(conn.RemoteAddr())
	io.WriteString(conn, conn.RemoteAddr().String()+"\n")
	// Closing with unread input would reset the connection, which might overtake the answer.
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.CloseWrite()
		io.Copy(io.Discard, conn)
	}
}

func (n *Net) listenUDP(s *Server, network, addr string) error {
	var conn net.PacketConn
	err := n.do(func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return err
	}
	s.Addr, s.close = conn.LocalAddr().String(), conn.Close
	go func() {
		buf := make([]byte, 64<<10)
		for {
			_, from, err := conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // otherwise an ICMP error for an earlier answer
				s.note(from)
				conn.WriteTo([]byte(from.String()+"\n"), from)
			}
		}
	}()
	return nil
}

func (s *Server) note(from net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, from.String())
}

// Seen returns the addresses that clients came from, oldest first.
func (s *Server) Seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// Close stops the server.
func (s *Server) Close() error { return s.close() }

// Dial connects to addr from the network namespace and returns the answer: from a Server, the source address that it
// saw. It retries for reachTime.
func (n *Net) Dial(network, addr string) string {
	t := n.report.TB()
	t.Helper()
	var answer string
	err := within(reachTime, func() (err error) {
		answer, err = n.TryDial(network, addr)
		return err
	})
	if err != nil {
		t.Fatalf("%s must reach %s %s: %v", n.name, network, addr, err)
	}
	return answer
}

// DialFail fails the test if addr answers.
func (n *Net) DialFail(network, addr string) {
	t := n.report.TB()
	t.Helper()
	if answer, err := n.TryDial(network, addr); err == nil {
		t.Fatalf("%s must not reach %s %s, but got the answer: %s", n.name, network, addr, answer)
	}
}

// TryDial tries once. addr must be an IP address, since names would be resolved on this machine.
func (n *Net) TryDial(network, addr string) (string, error) {
	return n.try(&net.Dialer{Timeout: silenceTime}, network, addr)
}

// TryDialFrom does what TryDial does, from a source port.
func (n *Net) TryDialFrom(port int, network, addr string) (string, error) {
	d := &net.Dialer{Timeout: silenceTime, LocalAddr: &net.TCPAddr{Port: port}}
	if strings.HasPrefix(network, "udp") {
		d.LocalAddr = &net.UDPAddr{Port: port}
	}
	return n.try(d, network, addr)
}

func (n *Net) try(d *net.Dialer, network, addr string) (string, error) {
	var conn net.Conn
	err := n.do(func() (err error) {
		conn, err = d.Dial(network, addr)
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(silenceTime))
	if strings.HasPrefix(network, "udp") {
		if _, err := io.WriteString(conn, "who am I?\n"); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 4<<10)
	got, err := conn.Read(buf)
	if err != nil && got == 0 {
		return "", fmt.Errorf("connected, but got no answer: %w", err)
	}
	return strings.TrimSpace(string(buf[:got])), nil
}

// openNet opens the network namespace of a file.
func openNet(path string, flag int) (space, error) {
	file, err := os.Open(path)
	if err != nil {
		return space{}, err
	}
	return space{file, flag}, nil
}
