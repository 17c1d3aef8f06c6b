# With offload=off nothing is left to the host, and 2 MB each way arrive over a tap that gvmm makes and takes away.
size=${GVMM_TRANSFER_BYTES:-2000000}
guest <<EOF
cat /sys/class/net/eth0/device/features
ip link set eth0 up
ip addr add 192.168.78.2/24 dev eth0
echo @up
ping -c 1 -w 60 192.168.78.1
guestio transfer tcp:192.168.78.1:5001 --up $size --down $size
EOF
cmdline="$cmdline modules=virtio_net"
limit=$((900 + size / 50000))
start --device virtio_net,tap=vm1,offload=off
await '@up'
ip addr add 192.168.78.1/24 dev vm1
guestio serve tcp:192.168.78.1:5001 &
server=$!
finish
expect_status 0
expect_console '^00.....00..00'
expect_console "^@transfer 1 connections $((2 * size)) bytes"
wait "$server"
[ ! -e /sys/class/net/vm1 ] || fail "the tap is still there"
