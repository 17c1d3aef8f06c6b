# User-mode networking passes data both ways: to the host, and to a port of a guest that has sent nothing yet.
uplink
size=${GVMM_TRANSFER_BYTES:-2000000}
# What the buffers between passt and the server hold: passt of Debian 12 resets a connection on which the guest has sent more
# than the server has taken, QEMU's guests' as well. A newer one does not.
up=1000000
[ ! -e /bed/passt ] || up=$size
command -v passt
guestio serve tcp:127.0.0.1:5001 --connections 6 &
server=$!
guest <<EOF
ip link set eth0 up
ip addr add 10.9.0.1/24 dev eth0
ip route add default via 10.9.0.2
cat /sys/class/net/eth0/mtu
guestio serve tcp:0.0.0.0:5002 --connections 2
# The gateway's address leads to the host itself. The half that goes up stays open while data come down. Once the guest has
# closed it, passt of Debian 12 sends some bytes twice. Newer ones, when they have to send something again, were seen to send
# other bytes in its place (that of October 2026, to QEMU's guests as well) or to reset the connection (that of Debian 13).
guestio transfer tcp:10.9.0.2:5001 --up $up && echo @up
guestio transfer tcp:10.9.0.2:5001 --down $size --keep-open && echo @down
guestio transfer tcp:10.9.0.2:5001 --rounds 20
EOF
cmdline="$cmdline modules=virtio_net"
limit=$((900 + size / 50000))
for queues in 1 4; do
    start --cpus "$queues" --device "virtio_net,user,tcp=6001:5002,queues=$queues"
    await '@serving'
    guestio transfer tcp:127.0.0.1:6001 --up "$size"
    guestio transfer tcp:127.0.0.1:6001 --down "$size" --keep-open
    finish
    expect_status 0
    expect_console '^65520$'
    expect_console '^@up$'
    expect_console '^@down$'
    expect_console '^served 2 connections'
done
wait "$server"
