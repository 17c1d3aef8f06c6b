# A guest that writes random values all over the registers, the interrupt table and the capabilities of one device, and
# puts its BAR where the GIC, the message frame and RAM are, loses that device at most: the VMM and the other go on.
disk good.img 32
disk victim.img 16
guest <<'EOF'
function=$(basename /sys/bus/pci/devices/*)
cd "/sys/bus/pci/devices/$function"
echo "$function" >driver/unbind
echo 1 >enable
for seed in 1 2 3; do
    guestio scribble resource0 --mapped --count 1500 --seed "$seed"
    guestio scribble config --count 300 --seed "$seed"
done
for address in '\000\000\002\010' '\000\000\377\077' '\000\000\000\200' '\000\000\000\020' '\377\377\377\377'; do
    printf "$address" | dd of=config bs=4 seek=4 count=1 conv=notrunc 2>/dev/null && echo "moved"
done
# The one that is left.
guestio verify /dev/vd? --processes 2 --requests 100
EOF
boot --cpus 2 --no-defaults --device pl011 --device virtio_blk,disk=good.img,transport=mmio \
    --device virtio_blk,disk=victim.img,transport=pci
expect_status 0
[ "$(grep -c '^scribbled 1500' console.log)" = 3 ] || fail "the registers were not written"
[ "$(grep -c '^scribbled 300' console.log)" = 3 ] || fail "the capabilities were not written"
[ "$(grep -c '^moved' console.log)" = 5 ] || fail "the BAR was not moved"
expect_console '^verified 2 processes'
