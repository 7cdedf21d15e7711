"""`expunge demo`: the whole story on real images, told through the HTTP interface alone."""
