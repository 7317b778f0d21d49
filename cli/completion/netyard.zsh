#compdef netyard

_netyard() {
	local cur=${words[CURRENT]}
	local -a line found
	line=("${(@)words[1,CURRENT-1]}")
	[[ $cur == -* ]] && line+=("$cur")
	found=("${(@f)$("${line[@]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n ${found[1]} ]]; then
		compadd -- "${found[@]}"
	else
		_files
	fi
}

# As a file in $fpath it is run to complete; sourced it only registers.
if [[ ${funcstack[1]} == _netyard ]]; then
	_netyard "$@"
else
	compdef _netyard netyard
fi
