module rectrain.io/tools/pause

go 1.24.0
