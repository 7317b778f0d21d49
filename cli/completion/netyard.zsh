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

# Autoloaded from $fpath, this file runs to complete a word; sourced, it only registers the function.
if [[ ${funcstack[1]} == _netyard ]]; then
	_netyard "$@"
else
	compdef _netyard netyard
fi
