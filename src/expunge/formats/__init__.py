"""The file formats every part of Expunge agrees on. Imports no other part; never touches the network."""
