package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A Sysctl is the wanted value of a setting below /proc/sys. Remove leaves it set: others may rely on it by then.
type Sysctl struct {
	Path  []string // "net", "ipv4", "ip_forward"
	Value string
	// Optional: a kernel without this setting counts as one where it has the value.
	Optional bool
}

// File returns the path of the setting.
func (s Sysctl) File() string { return filepath.Join(append([]string{"/proc/sys"}, s.Path...)...) }

// String returns the setting as sysctl(8) writes it.
func (s Sysctl) String() string { return "sysctl " + strings.Join(s.Path, ".") + "=" + s.Value }

func (s Sysctl) Ensure(k *Handle) error {
	got, err := k.ReadSysctl(s.File())
	if err == nil && got == s.Value {
		return nil
	}
	if err == nil {
		err = k.Inside(func() error { return os.WriteFile(s.File(), []byte(s.Value), 0o644) })
	}
	if errors.Is(err, os.ErrNotExist) && s.Optional {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", s, err)
	}
	return nil
}

func (Sysctl) Remove(*Handle) error { return nil }

func (s Sysctl) Check(snap *View) []string {
	got, err := snap.Handle.ReadSysctl(s.File())
	if (err != nil && s.Optional) || (err == nil && got == s.Value) {
		return nil
	}
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", s, err)}
	}
	return []string{fmt.Sprintf("%s: it is %s", s, got)}
}

// ReadSysctl reads the file of a setting in the handle's namespace.
func (k *Handle) ReadSysctl(file string) (string, error) {
	var raw []byte
	err := k.Inside(func() (err error) {
		raw, err = os.ReadFile(file)
		return err
	})
	return strings.TrimSpace(string(raw)), err
}
