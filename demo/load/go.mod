module idleconn.io/demo/load

go 1.24
