# A storage daemon that is killed while the disk rests is replaced by another, and the guest does not notice.
disk data.img 32
guest <<'EOF'
guestio verify /dev/vda --processes 2 --requests 200
echo "the disk rests"
read -r go
guestio verify /dev/vda --processes 2 --requests 200 --seed 2 && echo "verified again"
EOF
mkfifo keys
storage_daemon data.img
keyboard=keys start --stats stats.json --device vhost-user,type=blk,socket=disk.sock
exec 3>keys
await 'the disk rests'
kill -9 "$back_end"
wait "$back_end" || :
storage_daemon data.img
echo go >&3
finish
expect_status 0
expect_console '^verified again'
expect_stats '"connections": 2,'
