# A disk, a network card, entropy, the console and sockets, each in a whole sandbox of its own, serve one guest: data pass each way.
size=${GVMM_TRANSFER_BYTES:-500000}
disk data.img 32
uplink
# passt makes its socket as nobody.
chmod 1777 .
back_end passt --foreground --one-off --quiet --mtu 65520 --socket "$PWD/net.sock"
guestio serve tcp:127.0.0.1:5001 --connections 2 &
network=$!
guestio serve "unix:$PWD/vm.sock_5000" &
sockets=$!
guest <<EOF
readlink /proc/self/fd/1
guestio verify /dev/vda --processes 4 --requests 100
cat /sys/class/misc/hw_random/rng_current
for name in a b; do head -c 4096 /dev/hwrng >/tmp/\$name; done
# What can be packed is not random.
echo "random: \$(cat /tmp/a /tmp/b | gzip -c | wc -c)"
ip link set eth0 up
ip addr add 10.9.0.1/24 dev eth0
ip route add default via 10.9.0.2
guestio transfer tcp:10.9.0.2:5001 --up $size
guestio transfer tcp:10.9.0.2:5001 --down $size --keep-open
guestio transfer vsock:2:5000 --up $size --down $size --rounds 20
guestio serve vsock:4294967295:1024
read -r word && echo "typed \$word"
seq 2000
EOF
cmdline='quiet panic=-1 modules=virtio_net,virtio_rng,vmw_vsock_virtio_transport'
limit=600
mkfifo keys
until [ -S net.sock ]; do
    kill -0 "$back_end" 2>/dev/null || { cat back_end.log; fail "passt has ended"; }
    usleep 20000
done
keyboard=keys start --stats stats.json \
    --device virtio_blk,disk=data.img,isolate=required \
    --device virtio_net,socket=net.sock,isolate=required \
    --device virtio_rng,isolate=required \
    --device virtio_console,console=stdio,isolate=required \
    --device virtio_vsock,socket=vm.sock,isolate=required
exec 3>keys
await '@serving'
echo hello >&3
[ "$(pidof gvmm-device | wc -w)" = 5 ] || fail "not each device has a process"
guestio transfer "guest:$PWD/vm.sock:1024" --up "$size" --down "$size"
finish
expect_status 0
expect_console '^/dev/hvc0'
expect_console '^verified 4 processes'
expect_console '^virtio_rng'
[ "$(sed -n 's/^random: //p' console.log)" -ge 8192 ] || fail "the entropy is not random"
[ "$(grep -c "^@transfer 1 connections $size bytes" console.log)" = 2 ] || fail "not $size bytes each way by network"
expect_console "^@transfer 1 connections $((2 * size)) bytes"
expect_console '^served 1 connections'
expect_console '^typed hello'
seq 2000 >numbers
grep -E '^[0-9]+$' console.log | cmp - numbers || fail "the console lost something"
[ "$(grep -c '"connections_lost": 0' stats.json)" = 5 ] || fail "a process was lost"
wait "$network"
wait "$sockets"
[ -z "$(pidof gvmm-device)" ] || fail "a process is left over"
kill "$back_end" 2>/dev/null || :
