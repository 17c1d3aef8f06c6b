# Malformed frames on a tap and on a stream, and garbage in the queues of both cards, harm nothing: the guest pings and
# passes data afterwards.
tunctl -t vm4 >/dev/null
ip addr add 192.168.80.1/24 dev vm4
# So that the host lets long frames pass.
ip link set vm4 mtu 65521
ip link set vm4 up
guestio flood --socket net.sock --address 192.168.82.1 --card 02:00:00:00:00:05 >stream &
stream=$!
guest <<'EOT'
up() {
    ip link set "eth$1" up
    ip addr add "192.168.8$2.2/24" dev "eth$1"
}
all_pinged() {
    ping -c 3 -w 60 192.168.80.1 && ping -c 3 -w 60 192.168.82.1 && echo "@pinged $1"
}
up 0 0
up 1 2
echo @up
guestio serve tcp:0.0.0.0:5001 && all_pinged "after the flood"
for card in 0 1; do
    function=$(basename "$(dirname "$(readlink -f "/sys/class/net/eth$card/device")")")
    echo "$function" >/sys/bus/pci/drivers/virtio-pci/unbind
    echo 1 >"/sys/bus/pci/devices/$function/enable"
    guestio garble "/sys/bus/pci/devices/$function"
    echo "$function" >/sys/bus/pci/drivers/virtio-pci/bind
    up "$card" $((2 * card))
done
all_pinged "after the garbage"
guestio transfer tcp:192.168.80.1:5002 --up 200000 --down 200000
EOT
cmdline="$cmdline modules=virtio_net"
limit=400
until grep -q '@listening' stream; do usleep 20000; done
start --cpus 2 --device virtio_net,tap=vm4,mac=02:00:00:00:00:04 \
    --device virtio_net,socket=net.sock,mac=02:00:00:00:00:05
await '@up'
guestio flood --interface vm4 --card 02:00:00:00:00:04 >tap
tries=0
until grep -q '@flooded' stream; do
    tries=$((tries + 1))
    [ $tries -lt 2400 ] || fail "the flood of the stream does not end"
    usleep 50000
done
cat tap stream
guestio serve tcp:192.168.80.1:5002 &
server=$!
guestio transfer tcp:192.168.80.2:5001 --up 500000 --down 500000
finish
# A device that cannot go on with its queues is one that has failed.
expect_status 5
expect_console '^@pinged after the flood'
[ "$(grep -c '^garbled 3 queues 40 times, [1-9]' console.log)" = 2 ] || fail "no garbage in the queues"
expect_console '^@pinged after the garbage'
expect_console '^@transfer 1 connections 400000 bytes'
wait "$server" "$stream"
tunctl -d vm4 >/dev/null
