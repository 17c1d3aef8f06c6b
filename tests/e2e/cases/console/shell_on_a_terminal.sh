# A person at the console logs in, types, and powers off; the terminal is as it was.
disk root.img
cmdline="$cmdline root=/dev/vda rw"
terminal 'wait:# ' 'type:echo $((6*7))\r' 'wait:42' 'wait:# ' 'type:poweroff\r' -- --device virtio_blk,disk=root.img
expect_status 0
grep -q '^@terminal restored' terminal.log
