"""The limit of a round trip: a bare process that receives and sends back, blocking, over a Unix socket given as descriptor 0."""

from __future__ import annotations

import socket


def main() -> None:
    """Echo until the end."""
    with socket.socket(fileno=0) as connection:
        while chunk := connection.recv(65536):
            connection.sendall(chunk)


if __name__ == "__main__":
    main()
