.intel_syntax noprefix
mov dx, 0x80
mov rsi, rdi
mov ecx, 3
rep outsb
