// Command netyard connects the containers of a host to networks. It is both the daemon and its admin CLI.
package main

import (
	"os"

	"netyard/cli"
)

// version is set by the linker (-X main.version=v1.2.3), which can set only variables.
var version string

func main() { os.Exit(cli.Main(os.Args, version)) }
