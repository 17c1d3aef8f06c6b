//! Arm PL011 UART.
