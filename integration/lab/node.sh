# This script is the first process of a node. It starts in new namespaces, mounts the node's file systems, and becomes
# the init that reaps the node's orphaned processes. Its standard input is a pipe that the test holds: when the test
# ends, in whatever way, cat reads end-of-file, the init ends, and the kernel kills what is left in the node.
#
# ROOT: the root file system. DIR: the node's directory, with the same path inside and outside. NAME: its host name.
# DNS: its name server, or empty. BRIDGE_NF: 1 if bridged packets pass iptables. FORWARD: 1 to enable forwarding.
# File descriptor 3: the script writes "ready" to it when the node is set up.
set -eu
new=$DIR/root

mount --make-rprivate /
mount --rbind "$ROOT" "$new"
mount -t proc proc "$new/proc"
mount -t sysfs sysfs "$new/sys" # shows the interfaces of the namespace it is mounted from
mount --rbind /sys/fs/cgroup "$new/sys/fs/cgroup"
mount --rbind /dev "$new/dev"
# What the node writes there is private to it, and survives a power loss.
for d in etc opt var/lib; do
	mkdir -p "$DIR/disk/$d" "$DIR/disk/.work/$d"
	mount -t overlay -o "lowerdir=$new/$d,upperdir=$DIR/disk/$d,workdir=$DIR/disk/.work/$d" overlay "$new/$d"
done
for d in run tmp var/tmp; do
	mount -t tmpfs tmpfs "$new/$d"
done
mkdir -p "$new/run/lock" "$new$DIR"
mount --bind "$DIR" "$new$DIR"
mount --bind "$DIR/boot_id" "$new/proc/sys/kernel/random/boot_id"

# pivot_root, not chroot: runc cannot pivot_root inside a chroot.
cd "$new"
pivot_root . .
umount -l .
cd /
mount --make-rshared / # as on a host with systemd

# At the first boot: this machine's own networks, such as that of Debian's podman, are no business of the node's.
[ -e "$DIR/disk/.booted" ] || rm -rf /etc/cni
touch "$DIR/disk/.booted"

hostname "$NAME"
echo "127.0.0.1 localhost $NAME" >/etc/hosts
rm -f /etc/resolv.conf
[ -z "$DNS" ] || echo "nameserver $DNS" >/etc/resolv.conf
ip link set lo up
[ ! -e /proc/sys/net/bridge ] || for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do echo "$BRIDGE_NF" >"$f"; done
if [ "$FORWARD" = 1 ]; then
	echo 1 >/proc/sys/net/ipv4/ip_forward
	for f in default all; do echo 1 >/proc/sys/net/ipv6/conf/$f/forwarding; done
fi

echo ready >&3
exec 3>&-
exec tini -- cat
