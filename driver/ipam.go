package driver

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"

	"netyard/ipam"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/overlay"
	"netyard/yard/pool"
)

// The option keys of libnetwork's IPAM (moby, libnetwork/ipamapi/labels.go, netlabel/labels.go).
const (
	labelRequestType = "RequestAddressType"
	labelGateway     = "com.docker.network.gateway"
	labelMAC         = "com.docker.network.endpoint.macaddress"
	labelName        = "com.docker.network.endpoint.name"
)

func (d *Door) handleIPAM(mux *http.ServeMux, log *slog.Logger) {
	i := func(verb string, h http.Handler) { mux.Handle("/IpamDriver."+verb, h) }
	i("GetCapabilities", answer(func() ipamCapabilities { return ipamCapabilities{RequiresMACAddress: d.DHCP} }))
	space := book.Space
	if d.DHCP {
		space = book.DHCPSpace
	}
	i("GetDefaultAddressSpaces", answer(func() addressSpaces {
		return addressSpaces{LocalDefaultAddressSpace: space, GlobalDefaultAddressSpace: space}
	}))
	i("RequestPool", call(d.Yard, log, "RequestPool", d.requestPool))
	i("ReleasePool", call(d.Yard, log, "ReleasePool", d.releasePool))
	i("RequestAddress", call(d.Yard, log, "RequestAddress", d.requestAddress))
	i("ReleaseAddress", call(d.Yard, log, "ReleaseAddress", d.releaseAddress))
}

func (d *Door) requestPool(ctx context.Context, q requestPool) (poolAnswer, error) {
	if r, ok, err := lease.ParseDHCP(d.DHCP, q.Pool, q.SubPool, q.V6, q.Options); err != nil {
		return poolAnswer{}, err
	} else if ok {
		p, err := lease.RequestDHCPPool(ctx, d.Yard.Book, r)
		return poolAnswer{PoolID: p.ID, Pool: p.Range().String(), Data: gatewayData(p.Token())}, err
	}
	if name, ok, err := overlay.ParseOverlay(overlay.Claims(d.Yard.Book, d.Mode), q.SubPool, q.Options); err != nil {
		return poolAnswer{}, err
	} else if ok {
		return d.requestOverlayPool(ctx, name, q)
	}
	r, err := yard.PoolRequest(q.Pool, q.SubPool, q.Options)
	if err != nil {
		return poolAnswer{}, err
	}
	r.V6 = q.V6
	if d.Yard.Addressless(d.Mode) && !r.Subnet.IsValid() {
		p := ipam.NullPool(q.V6)
		return poolAnswer{PoolID: p.ID, Pool: p.Subnet.String(), Data: gatewayData(p.Subnet)}, nil
	}
	p, err := pool.RequestPool(ctx, d.Yard, r)
	if err != nil {
		return poolAnswer{}, err
	}
	return poolAnswer{PoolID: p.ID, Pool: p.Subnet.String()}, nil
}

// gatewayData names the gateway in the answer to RequestPool; otherwise the engine requests an address for one.
func gatewayData(gateway netip.Prefix) map[string]string {
	return map[string]string{labelGateway: gateway.String()}
}

func (d *Door) requestOverlayPool(ctx context.Context, name string, q requestPool) (poolAnswer, error) {
	p, err := overlay.RequestOverlayPool(ctx, d.Yard.Book, name, q.Pool, q.V6)
	if err != nil {
		return poolAnswer{}, err
	}
	a := poolAnswer{PoolID: p.ID, Pool: p.Subnet.String()}
	if p.Gateway.IsValid() {
		a.Data = gatewayData(p.Gateway)
	}
	return a, nil
}

func (d *Door) releasePool(ctx context.Context, q releasePool) (empty, error) {
	return empty{}, pool.ReleasePool(ctx, d.Yard, q.PoolID)
}

func (d *Door) requestAddress(ctx context.Context, q requestAddress) (addressAnswer, error) {
	for _, v6 := range []bool{false, true} {
		if p := ipam.NullPool(v6); q.PoolID == p.ID {
			return addressAnswer{Address: p.Subnet.String()}, nil
		}
	}
	r := ipam.AddressRequest{
		Pool:    q.PoolID,
		Gateway: q.Options[labelRequestType] == labelGateway,
		Name:    q.Options[labelName],
		MAC:     q.Options[labelMAC],
	}
	if q.Address != "" {
		var err error
		if r.Addr, err = netip.ParseAddr(q.Address); err != nil {
			return addressAnswer{}, fmt.Errorf("address %q: %w", q.Address, err)
		}
	}
	a, err := pool.RequestAddress(ctx, d.Yard, r)
	if err != nil {
		return addressAnswer{}, err
	}
	return addressAnswer{Address: a.String()}, nil
}

func (d *Door) releaseAddress(ctx context.Context, q releaseAddress) (empty, error) {
	a, err := netip.ParseAddr(q.Address)
	if err != nil {
		return empty{}, fmt.Errorf("address %q: %w", q.Address, err)
	}
	return empty{}, pool.ReleaseAddress(ctx, d.Yard, q.PoolID, a)
}
