"""Proteins: read FASTA, text and UniProt tables, choose, cluster by homology, split, and the tables that travel."""
