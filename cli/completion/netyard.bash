# bash completion for netyard

_netyard() {
	local cur=${COMP_WORDS[COMP_CWORD]} word
	local line=("${COMP_WORDS[@]:0:COMP_CWORD}")
	[[ $cur == -* ]] && line+=("$cur")
	COMPREPLY=()
	# Not compgen -W, which would expand the words.
	while IFS= read -r word; do
		[[ $word == "$cur"* ]] && COMPREPLY+=("$word")
	done < <("${line[@]}" --generate-bash-completion 2>/dev/null)
}

complete -o default -F _netyard netyard
