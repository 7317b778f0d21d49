# lib.sh: functions that the other scripts share. They source it; it does nothing by itself.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The root shell of su has no sbin in PATH, that of sudo no Go.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin
export HOME=${HOME:-/root} # Go's caches are there

bold='' plain=''
if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; fi

heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

need_root() { ((EUID == 0)) || die "root is required; try: sudo $0 $*"; }

need_go() {
	command -v go >/dev/null ||
		die "Go is not in PATH; install Go $(sed -n 's/^go //p' "$repo/go.mod") or newer"
}

# need PROGRAM=PACKAGE… installs the packages of programs that are missing. PROGRAM may be the path of a file.
need() {
	local pair program missing=()
	for pair; do
		program=${pair%%=*}
		[[ $program == /* && -e $program ]] || command -v "$program" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

# need_busybox installs a static busybox, which runs in containers and other roots. Many machines have a dynamic one.
need_busybox() {
	local kind
	# ldd fails for a static program.
	kind=$(command -v busybox >/dev/null && LC_ALL=C ldd "$(command -v busybox)" 2>&1) || true
	[[ $kind == *"not a dynamic"* || $kind == *"statically linked"* ]] || install_packages busybox-static
}

# install_packages installs Debian packages without starting their services: this machine's engine stays as it is.
install_packages() {
	local log
	log=$(mktemp)
	echo "installing: $*"
	command -v apt-get >/dev/null ||
		die "this machine has no apt-get; install the equivalents of these Debian packages: $*"
	(
		policy=/usr/sbin/policy-rc.d
		if [[ ! -e $policy ]]; then
			trap 'rm -f "$policy"' EXIT
			printf '#!/bin/sh\nexit 101\n' >"$policy"
			chmod +x "$policy"
		fi
		export DEBIAN_FRONTEND=noninteractive
		apt=(apt-get -q -o DPkg::Lock::Timeout=300)
		"${apt[@]}" update >"$log" 2>&1 || echo "some package lists were not updated; continuing with the old ones"
		"${apt[@]}" install -y --no-install-recommends "$@" </dev/null >"$log" 2>&1
	) || die "apt-get could not install $*:"$'\n'"$(tail -n 20 "$log")"
	rm -f "$log"
}

# load_modules loads kernel modules that engines need: in a root without modules they could not load them. Modules that
# are built into the kernel need no loading.
load_modules() {
	local m
	for m in overlay bridge br_netfilter; do
		modprobe -q "$m" 2>/dev/null || true
	done
}

# forget_firewall removes what a stopped netyard leaves in the kernel: its tables, which cannot be deleted while it runs,
# its local routes, and its rules in the chains of others.
forget_firewall() {
	nft delete table inet netyard 2>/dev/null || true
	nft delete table bridge netyard 2>/dev/null || true
	ip -4 route flush table local proto 78 2>/dev/null || true # stand-ins for loopback addresses, docs/ports.md
	ip -6 route flush table local proto 78 2>/dev/null || true
	local family chain handle rule
	for family in ip ip6; do
		for chain in DOCKER-USER FORWARD ufw-user-forward ufw6-user-forward; do
			for handle in $(nft -a list chain "$family" filter "$chain" 2>/dev/null |
				sed -n 's/.*"netyard.*# handle //p'); do
				nft delete rule "$family" filter "$chain" handle "$handle"
			done
		done
		# If Docker uses legacy iptables. Only if its tables exist: to list them would create them.
		grep -qs filter "/proc/net/${family}_tables_names" || continue
		"${family}tables-legacy" -S DOCKER-USER 2>/dev/null | sed -nE 's/^-A (.*--comment "?netyard\b)/-D \1/p' |
			while read -r rule; do
				xargs "${family}tables-legacy" -w <<<"$rule"
			done
	done
}
