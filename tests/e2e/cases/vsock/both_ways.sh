# Programs of guest and host reach each other: 10 MB each way, each half ending by itself, and a port nobody listens at is refused.
size=${GVMM_TRANSFER_BYTES:-10000000}
guestio serve "unix:$PWD/vm.sock_5000" --connections 1 &
server=$!
guest <<EOF
guestio transfer vsock:2:5000 --up $size --down $size --rounds 20
guestio transfer vsock:2:5001 --up 1 && echo "@reached nobody"
guestio serve vsock:4294967295:1024
EOF
cmdline="$cmdline modules=vmw_vsock_virtio_transport"
limit=$((500 + size / 50000))
start --device virtio_vsock,socket=vm.sock
await '@serving'
guestio transfer "guest:$PWD/vm.sock:1025" --up 1 && fail "nobody of the guest was reached"
guestio transfer "guest:$PWD/vm.sock:1024" --up $size --down $size
finish
wait "$server"
expect_status 0
expect_console "^@transfer 1 connections $((2 * size)) bytes"
expect_console '^served 1 connections'
no_console '@reached nobody'
[ ! -e vm.sock ] || fail "the socket is still there"
