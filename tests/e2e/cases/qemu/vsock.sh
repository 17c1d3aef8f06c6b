# Streams of a vsock device that gvmm-device serves to QEMU: two that a cable joins on the host, and 4 MB each way arrive as they
# were sent.
size=${GVMM_TRANSFER_BYTES:-4000000}
guestio serve vsock:2:5000 --connect >served &
server=$!
guestio transfer vsock:2:5000 --up "$size" --down "$size" --rounds 20 >transfer
grep "^@transfer 1 connections $((2 * size)) bytes" transfer
wait "$server"
