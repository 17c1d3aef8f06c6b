# When passt is killed the guest loses its link; it is started again, and the guest's network with it. It ends with gvmm.
uplink
guestio serve tcp:127.0.0.1:5003 --connections 2 &
server=$!
guest <<'EOF'
ip link set eth0 up
ip addr add 10.9.0.1/24 dev eth0
ip route add default via 10.9.0.2
carrier() {
    until [ "$(cat /sys/class/net/eth0/carrier)" = "$1" ]; do
        usleep 20000
    done
    echo "@carrier $1"
}
carrier 1
guestio transfer tcp:10.9.0.2:5003 --up 100000 --down 100000 --keep-open
echo @ready
carrier 0
carrier 1
guestio transfer tcp:10.9.0.2:5003 --up 100000 --down 100000 --keep-open
echo @again
sleep 600
EOF
cmdline="$cmdline modules=virtio_net"
limit=240
start --device virtio_net,user
await '@ready'
first=$(pidof passt)
kill -9 $first
await '@again'
second=$(pidof passt)
[ "$first" != "$second" ] || fail "passt was not started again"
kill -9 "$(pidof gvmm)"
finish
expect_console '^@carrier 0'
expect_message 'network link is down'
wait "$server"
tries=0
while [ -n "$(pidof passt)" ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || fail "passt outlives gvmm"
    usleep 50000
done
