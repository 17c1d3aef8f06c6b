# With four pairs of queues eight connections at once pass, and more than one pair is used.
size=$((${GVMM_TRANSFER_BYTES:-4000000} / 8))
guest <<EOF
ip link set eth0 up
ip addr add 192.168.79.2/24 dev eth0
echo @up
ls -d /sys/class/net/eth0/queues/rx-* | wc -l
ping -c 1 -w 60 192.168.79.1
guestio transfer tcp:192.168.79.1:5001 --connections 8 --up $size --down $size
grep -E 'virtio[0-9]+' /proc/interrupts
EOF
cmdline="$cmdline modules=virtio_net"
limit=$((900 + size / 6000))
start --cpus 4 --device virtio_net,tap=vm2,queues=4
await '@up'
ip addr add 192.168.79.1/24 dev vm2
ls -d /sys/class/net/vm2/queues/rx-* | wc -l >queues
guestio serve tcp:192.168.79.1:5001 --connections 8 &
server=$!
finish
expect_status 0
expect_console '^4$'
expect_console "^@transfer 8 connections $((16 * size)) bytes"
[ "$(cat queues)" = 4 ] || fail "the tap has $(cat queues) queues in use, not 4"
wait "$server"
