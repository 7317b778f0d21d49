# lib.sh: what the scripts beside it share. It is sourced by them, and does nothing by itself.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# A root shell of su has no sbin, one of sudo no Go.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin
export HOME=${HOME:-/root} # Go keeps its caches there

bold='' plain=''
if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; fi

heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

need_root() { ((EUID == 0)) || die "only root can make network namespaces; try: sudo $0 $*"; }

need_go() {
	command -v go >/dev/null || die "Go is missing; install go$(sed -n 's/^go //p' "$repo/go.mod") or newer and put it into PATH"
}

# need PROGRAM=PACKAGE… installs the packages of the programs that are not there. A path of a file may stand for a program.
need() {
	local pair program missing=()
	for pair; do
		program=${pair%%=*}
		[[ $program == /* && -e $program ]] || command -v "$program" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

# need_busybox wants one that runs anywhere: in a container, or in the root of another Debian. Many machines have the other one.
need_busybox() {
	local kind
	kind=$(command -v busybox >/dev/null && LC_ALL=C ldd "$(command -v busybox)" 2>&1) || true # a static one is a failure to ldd
	[[ $kind == *"not a dynamic"* || $kind == *"statically linked"* ]] || install_packages busybox-static
}

# install_packages installs Debian packages and starts none of the services in them: a machine's own engine stays as it is.
install_packages() {
	local log
	log=$(mktemp)
	echo "installing: $*"
	command -v apt-get >/dev/null || die "there is no apt-get here; install by other means what Debian calls: $*"
	(
		policy=/usr/sbin/policy-rc.d
		if [[ ! -e $policy ]]; then
			trap 'rm -f "$policy"' EXIT
			printf '#!/bin/sh\nexit 101\n' >"$policy"
			chmod +x "$policy"
		fi
		export DEBIAN_FRONTEND=noninteractive
		apt=(apt-get -q -o DPkg::Lock::Timeout=300)
		"${apt[@]}" update >"$log" 2>&1 || echo "not every list of packages could be fetched; going on with what is there"
		"${apt[@]}" install -y --no-install-recommends "$@" </dev/null >"$log" 2>&1
	) || die "apt-get could not install $*:"$'\n'"$(tail -n 20 "$log")"
	rm -f "$log"
}

# load_modules loads what engines would otherwise ask for from inside a root that has no modules. A kernel that has them built
# in has nothing to load.
load_modules() {
	local m
	for m in overlay bridge br_netfilter; do
		modprobe -q "$m" 2>/dev/null || true
	done
}

# forget_firewall removes what a netyard leaves for the next one to find: its tables, which nobody can delete while one runs, its local
# routes, and its rules in the chains of others.
forget_firewall() {
	nft delete table inet netyard 2>/dev/null || true
	nft delete table bridge netyard 2>/dev/null || true
	ip -4 route flush table local proto 78 2>/dev/null || true # what stands for loopback, docs/ports.md
	ip -6 route flush table local proto 78 2>/dev/null || true
	local family chain handle rule
	for family in ip ip6; do
		for chain in DOCKER-USER FORWARD ufw-user-forward ufw6-user-forward; do
			for handle in $(nft -a list chain "$family" filter "$chain" 2>/dev/null | sed -n 's/.*"netyard.*# handle //p'); do
				nft delete rule "$family" filter "$chain" handle "$handle"
			done
		done
		# Where Docker speaks legacy iptables; just to ask would make the tables.
		grep -qs filter "/proc/net/${family}_tables_names" || continue
		"${family}tables-legacy" -S DOCKER-USER 2>/dev/null | sed -nE 's/^-A (.*--comment "?netyard\b)/-D \1/p' | while read -r rule; do
			xargs "${family}tables-legacy" -w <<<"$rule"
		done
	done
}
