"""Proteins: read FASTA, text and UniProt, choose, cluster by homology, split, and the tables that travel."""
