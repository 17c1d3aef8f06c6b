# A hundred connections at once, half of them from each side, keep their data apart; a guest goes on when the host's side goes away.
guestio serve "unix:$PWD/vm.sock_5000" --connections 50 &
server=$!
guest <<'EOF'
guestio transfer vsock:2:5000 --connections 50 --up 100000 --down 100000 &
client=$!
guestio serve vsock:4294967295:1024 --connections 50
wait $client
echo "@all"
guestio transfer vsock:2:5002 --up 50000000 || echo "@noticed"
EOF
cmdline="$cmdline modules=vmw_vsock_virtio_transport"
start --cpus 2 --device virtio_vsock,socket=vm.sock
await '@serving'
guestio transfer "guest:$PWD/vm.sock:1024" --connections 50 --up 100000 --down 100000
wait "$server"
guestio serve "unix:$PWD/vm.sock_5002" --connections 2 >served &
server=$!
await '@all'
until [ -s served ]; do usleep 50000; done
usleep 300000
kill -9 $server
finish
expect_status 0
expect_console '^@transfer 50 connections 10000000 bytes'
expect_console '^served 50 connections'
expect_console '^@noticed'
