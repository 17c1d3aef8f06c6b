# Ctrl-a x leaves the console: gvmm says so at its start, ends, and restores the terminal.
disk root.img
cmdline="$cmdline root=/dev/vda rw"
terminal 'wait:Ctrl-a' 'wait:# ' 'type:\x01x' -- --device virtio_blk,disk=root.img
grep -q '^@terminal restored' terminal.log
