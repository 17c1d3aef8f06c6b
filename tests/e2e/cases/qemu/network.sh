# Two network cards that gvmm-device serves to QEMU, and a cable between them: ping, and 4 MB each way arrive as they were sent.
size=${GVMM_TRANSFER_BYTES:-4000000}
for net in /sys/class/net/*; do
    case $(cat "$net/address") in
    02:00:00:00:00:01) left=${net##*/} ;;
    02:00:00:00:00:02) right=${net##*/} ;;
    esac
done
# In a network of its own the other card is another machine to this one.
unshare -n sleep 600 &
other=$!
there() {
    nsenter -t "$other" -n "$@"
}
until [ "$(readlink "/proc/$other/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do usleep 20000; done
ip link set "$right" netns "$other"
there ip addr add 192.168.80.2/24 dev "$right"
there ip link set "$right" up
ip addr add 192.168.80.1/24 dev "$left"
ip link set "$left" up
there guestio serve tcp:192.168.80.2:5001 >served &
server=$!
ping -c 3 -w 30 192.168.80.2
until grep -q '^@serving' served; do usleep 50000; done
guestio transfer tcp:192.168.80.2:5001 --up "$size" --down "$size" --rounds 20 >transfer
grep "^@transfer 1 connections $((2 * size)) bytes" transfer
wait "$server"
kill "$other"
