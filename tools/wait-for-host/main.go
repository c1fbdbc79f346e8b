// Wait until a host name has an address: what the init container of a PyTorchJob's workers does about the master.
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	var err error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		var addresses []string
		if addresses, err = net.LookupHost(os.Args[1]); err == nil {
			fmt.Println(os.Args[1], "is", addresses)
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
