package policy

import "netyard/kernel/rule"

// Sets are those of policy.
func Sets() []rule.Set { return policySets() }

// Chains are those of policy, for what is routed.
func Chains(b rule.Book) []rule.Chain { return policyChains(b) }
