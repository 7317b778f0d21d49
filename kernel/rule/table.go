package rule

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Where the kernel supports it (since 6.9), netyard's tables belong to its netlink socket: no other program can flush,
// change or delete them, and `nft flush ruleset` leaves them alone (NFT_TABLE_F_OWNER). When the socket is closed,
// however the daemon ended, the tables stay (NFT_TABLE_F_PERSIST), any program can change them, and the next daemon
// takes ownership of them. Both flags are needed: a table that only has an owner is deleted with the socket.
const (
	tableOwner   = 0x2
	tablePersist = 0x4
)

// OwnedTable returns the request that makes netyard's socket the owner of a table, and the table if it is missing.
// google/nftables does not send a table's flags.
func OwnedTable(t *nftables.Table) (m netlink.Message, err error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(t.Name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner|tablePersist)},
	})
	if err != nil {
		return m, fmt.Errorf("encode table %s: %w", t.Name, err)
	}
	m.Header.Type = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE
	m.Header.Flags = netlink.Request | netlink.Acknowledge | netlink.Create
	m.Data = append([]byte{byte(t.Family), 0, 0, 0}, attrs...)
	return m, nil
}
