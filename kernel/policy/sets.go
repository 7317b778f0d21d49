package policy

import "netyard/kernel/rule"

// Sets returns the sets of policy.
func Sets() []rule.Set { return policySets() }

// Chains returns the chains of policy for routed packets.
func Chains(b rule.SetBook) []rule.Chain { return policyChains(b) }
