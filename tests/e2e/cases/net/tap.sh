# Over a tap that was there before: ping, and 20 MB each way arrive as they were sent.
size=${GVMM_TRANSFER_BYTES:-20000000}
tunctl -t vm0 >/dev/null
ip addr add 192.168.77.1/24 dev vm0
ip link set vm0 up
guestio serve tcp:192.168.77.1:5001 &
server=$!
guest <<EOF
cat /sys/class/net/eth0/address /sys/class/net/eth0/device/features
ip link set eth0 up
ip addr add 192.168.77.2/24 dev eth0
ping -c 3 -w 30 192.168.77.1
guestio transfer tcp:192.168.77.1:5001 --up $size --down $size --rounds 20
EOF
cmdline="$cmdline modules=virtio_net"
limit=$((900 + size / 50000))
boot --device virtio_net,tap=vm0,mac=02:00:00:00:00:01
expect_status 0
expect_console '^02:00:00:00:00:01$'
# Checksums (bits 0 and 1) and segmentation (7, 8, 11, 12) are left to the host.
expect_console '^11.....11..11'
expect_console '^3 packets transmitted, 3 packets received'
expect_console "^@transfer 1 connections $((2 * size)) bytes"
wait "$server"
tunctl -d vm0 >/dev/null
