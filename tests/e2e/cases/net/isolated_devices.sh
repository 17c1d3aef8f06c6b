# Network, sockets, entropy and console of a guest, each in a sandboxed process of its own: what is sent arrives.
. /bed/cases/uplink
guestio serve tcp:127.0.0.1:5004 --connections 1 &
network=$!
guestio serve "unix:$PWD/vm.sock_5000" --connections 1 &
sockets=$!
guest <<'EOF'
ip link set eth0 up
ip addr add 10.9.0.1/24 dev eth0
ip route add default via 10.9.0.2
guestio transfer tcp:10.9.0.2:5004 --up 1000000 --down 1000000
guestio transfer vsock:2:5000 --up 1000000 --down 1000000
cat /sys/class/misc/hw_random/rng_current
echo "@entropy $(head -c 20000 /dev/hwrng | wc -c)"
echo "@by the console" >/dev/hvc0
EOF
cmdline="$cmdline modules=virtio_net,vmw_vsock_virtio_transport,virtio_rng,virtio_console"
back_end passt --foreground --quiet --socket "$PWD/net.sock"
until [ -S net.sock ]; do usleep 20000; done
boot --stats stats.json --device virtio_net,socket=net.sock,isolate=on \
    --device virtio_vsock,socket=vm.sock,isolate=on --device virtio_rng,isolate=on \
    --device virtio_console,console=file:hvc0.log,isolate=on
cat back_end.log
expect_status 0
wait "$network"
wait "$sockets"
[ "$(grep -c '^@transfer 1 connections 2000000 bytes' console.log)" = 2 ] || fail "not both transfers came through"
expect_console '^virtio_rng'
expect_console '^@entropy 20000$'
grep -q '^@by the console' hvc0.log || fail "the console says: $(cat hvc0.log)"
[ -z "$(pidof gvmm-device)" ] || fail "a process is left over"
