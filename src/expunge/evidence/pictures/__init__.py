"""What an owner sees of an audit: matrices as pictures and tables, and a one-page report. Computes no statistic."""
