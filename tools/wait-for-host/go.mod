module rectrain.io/tools/wait-for-host

go 1.24.0
