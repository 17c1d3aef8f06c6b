# A guest finds the tutorial's device in its tree, reads and writes its register, and gets its interrupt.
cmdline="$cmdline iomem=relaxed"
guest <<'EOF'
hex() {
    od -An -v -tx1 "$1" | tr -d ' \n'
}
node=$(echo /proc/device-tree/counter@*)
cat "$node/compatible" && echo
address=0x$(hex "$node/reg" | cut -c1-16)
# The second cell (GIC binding: kind, number, trigger); SPI 0 is interrupt 32.
number=$((0x$(hex "$node/interrupts" | cut -c9-16) + 32))
distributor=0x$(sed -n 's/^ *\([0-9a-f]*\)-.* : GICD$/\1/p' /proc/iomem | head -n 1)
# GICD_ISPENDR (GICv3, 12.9.11), a bit for each interrupt.
pending() {
    word=$(devmem $((distributor + 0x200 + number / 32 * 4)) 32)
    echo "$1: pending $((word >> (number % 32) & 1))"
}
devmem "$address" 32
devmem "$address" 32 7
pending 'one write'
devmem "$address" 32 7
pending 'two writes'
echo "count $(devmem "$address" 32)"
EOF
boot --device /bed/lib/libcounter.so,step=2
expect_status 0
expect_console '^example,counter'
expect_console '^0x00000000$'
expect_console '^one write: pending 0$'
expect_console '^two writes: pending 1$'
expect_console '^count 0x00000002$'
