// Command netyard gives the containers of a host their networks.
package main

import (
	"os"

	"netyard/cli"
)

// version is set by the linker: -X main.version=v1.2.3; it can set nothing but a variable.
var version string

func main() { os.Exit(cli.Main(os.Args, version)) }
