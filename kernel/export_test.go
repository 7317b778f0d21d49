package kernel

// LookAt makes the kernel's word on links that of another directory than /sys/class/net: no test has a wireless card.
func (k *Kernel) LookAt(dir string) { k.sys = dir }

// Whether a kernel of that release knows which packets its VXLAN devices made.
var TellsDevicesIn = tellsDevices
